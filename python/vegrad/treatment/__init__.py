"""From findings to the smallest change that helps, and its proof."""
