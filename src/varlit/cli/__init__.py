"""The command line: thin, no science. One module a verb, imported when the verb is typed."""
