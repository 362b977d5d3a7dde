"""The page that `expunge serve` shows: it writes plans, starts `expunge bench` on them, and reads the files of runs."""
