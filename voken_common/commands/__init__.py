"""The subcommands of `voken`, a file each: arguments and messages, no computation. `main` has the table of them."""
