//! Random bytes from the system, for the server's own secrets and for other values that must not be
//! guessed.

use anyhow::Result;

/// Returns 32 random bytes from the system.
pub fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    Ok(bytes)
}
