//! The `certdist` command.

fn main() {}
