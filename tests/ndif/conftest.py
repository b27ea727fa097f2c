"""The server's plug-in is imported by the server alone, which has ndif."""

collect_ignore = ["plugin"]
