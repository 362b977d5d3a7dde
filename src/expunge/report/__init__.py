"""What a reader is handed: the report of a run, figures, and sheets on which people label images."""
