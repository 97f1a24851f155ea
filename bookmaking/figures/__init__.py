"""Drawing code of the chapters: one module each, named as the chapter."""
