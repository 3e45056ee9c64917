"""What answers cost: units set aside, charged or given back, and answers that take equally long."""
