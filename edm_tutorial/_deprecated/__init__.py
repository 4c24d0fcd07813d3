"""Names, keywords and files of version 0.1.0, kept for one release."""
