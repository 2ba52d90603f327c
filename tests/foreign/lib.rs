//! This package has no code. It exists only for its lock file, as Cargo.toml explains.
