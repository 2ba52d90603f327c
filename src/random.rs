//! The system's randomness, as far as it is asked for here: keys of the server's own
//! and what nobody may guess.

use anyhow::Result;

/// 32 bytes of the system's randomness.
pub fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    Ok(bytes)
}
