"""The embedded model: its glossary, its files and the script that makes them."""
