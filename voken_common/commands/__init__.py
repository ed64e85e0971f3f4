"""What the commands of both frameworks share: arguments and messages."""
