"""Images: data sets, augmentation, and the command line that trains on them."""
