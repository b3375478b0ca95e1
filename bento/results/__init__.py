"""Maps, tables, pictures and STAC items of classified scenes."""
