"""The zoo: networks whose labels do not come from vegrad, judged and treated by vegrad."""
