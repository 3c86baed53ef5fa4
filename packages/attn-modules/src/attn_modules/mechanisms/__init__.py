"""The mechanisms, one published one per file; their names are found in `attn_modules` itself."""
