"""U-Nets for images: DDPM++, NCSN++, ADM and small ones, and the import of official weights."""
