"""The nouns: what a backbone, an edit, an eraser, an attack, a judge, a metric and a record are."""
