"""What a run or a folder of results looks like: closing summary, figures, RESULTS.md."""
