"""The built site: explorers, example pictures, the live demo, the opening figure, and lighter pages."""
