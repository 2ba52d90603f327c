//! Users and tokens of the operator's port, and their roles.

use std::fmt;

use serde::Deserialize;

/// Rights of a user or a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May see everything.
    Viewer,
    /// May see everything and change devices.
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

/// A person who signs in with a password.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// Name to sign in with.
    pub name: String,
    /// Argon2 hash of the password: `$argon2id$…`.
    pub password_hash: String,
    /// Role of the user.
    pub role: Role,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({}, {})", self.name, self.role)
    }
}

/// A script that sends a token with each request.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Name in logs.
    pub name: String,
    /// SHA-256 of the token. A fast hash is enough, because the token has 256 random bits.
    pub hash: [u8; 32],
    /// Role of the script.
    pub role: Role,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, {})", self.name, self.role)
    }
}
