"""What is trained, as a value: checked, packed, sent, run and told of when it fails. Knows no engine."""
