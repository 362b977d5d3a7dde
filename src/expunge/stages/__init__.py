"""The rooms: each takes files and settings and gives files."""
