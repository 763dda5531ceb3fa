"""The rules, by subject, and the table that joins them."""
