"""What a report is made of: a plan, read operator by operator."""
