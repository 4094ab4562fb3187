"""One preference step through several toolkits: cases, workers, the operation bound, the page."""
