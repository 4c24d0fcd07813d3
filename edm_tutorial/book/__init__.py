"""What only the chapters of the book need: exercises, plotting, Table 1 as text."""
