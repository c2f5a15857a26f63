"""One folder per command, with the same files in each: settings, plan, run, record, words, table, page, and its own."""
