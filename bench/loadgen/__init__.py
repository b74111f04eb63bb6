"""MLPerf's LoadGen: its rules, the process that it runs in, how its queries are answered, and what it says."""
