"""Text, pictures and pages of what was found."""
