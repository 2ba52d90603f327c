//! Concise problem details (RFC 9290): what an error's payload looks like.

/// RFC 9290 §2: the label of `title`.
const TITLE: i8 = -1;

/// The CBOR map `{-1: title}`.
pub fn details(title: &str) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::with_capacity(title.len() + 4));
    // Writing to a vector cannot fail.
    let _ = encoder.map(1).and_then(|map| map.i8(TITLE)).and_then(|map| map.str(title));
    encoder.into_writer()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_is_under_label_minus_one() {
        assert_eq!(details("no"), [0xa1, 0x20, 0x62, b'n', b'o']);
    }
}
