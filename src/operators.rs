//! Who may come in at the operator's port: users with a password, scripts with a token.

use std::fmt;

use serde::Deserialize;

/// Rights of a user or a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Viewer,
    /// Look, and change devices.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        })
    }
}

/// Somebody who signs in with a password.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// How they are called.
    pub name: String,
    /// `$argon2id$…`.
    pub password_hash: String,
    /// What they may do.
    pub role: Role,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({}, {})", self.name, self.role)
    }
}

/// A script that carries a token with each request.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the log calls it.
    pub name: String,
    /// SHA-256 of the token: it has 256 random bits, so that nobody can try them.
    pub hash: [u8; 32],
    /// What it may do.
    pub role: Role,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, {})", self.name, self.role)
    }
}
