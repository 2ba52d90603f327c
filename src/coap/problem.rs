//! Concise problem details (RFC 9290): the payload of an error.

/// Label of `title` (RFC 9290 §2).
const TITLE: i8 = -1;
/// Label of `unprocessed-coap-option` (RFC 9290 §3.1).
const UNPROCESSED_OPTION: i8 = -8;

/// Returns the CBOR map `{-1: title}`.
pub fn details(title: &str) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::with_capacity(title.len() + 4));
    // Writing to a vector cannot fail.
    let _ = encoder.map(1).and_then(|map| map.i8(TITLE)).and_then(|map| map.str(title));
    encoder.into_writer()
}

/// Returns the CBOR map `{-1: title, -8: number}`. In place of a single number, several numbers are
/// written as an array (RFC 9290 §3.1).
pub fn unprocessed_options(title: &str, numbers: &[u16]) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::with_capacity(title.len() + 8 + 3 * numbers.len()));
    // Writing to a vector cannot fail.
    let _ = encoder.map(2).and_then(|map| map.i8(TITLE)).and_then(|map| map.str(title));
    let _ = encoder.i8(UNPROCESSED_OPTION);
    if numbers.len() != 1 {
        let _ = encoder.array(numbers.len() as u64);
    }
    for &number in numbers {
        let _ = encoder.u16(number);
    }
    encoder.into_writer()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_is_under_label_minus_one() {
        assert_eq!(details("no"), [0xa1, 0x20, 0x62, b'n', b'o']);
    }

    #[test]
    fn one_option_is_a_number_and_several_are_an_array() {
        assert_eq!(unprocessed_options("no", &[9]), [0xa2, 0x20, 0x62, b'n', b'o', 0x27, 9]);
        let several = [0xa2, 0x20, 0x62, b'n', b'o', 0x27, 0x82, 9, 0x19, 0xfd, 0xe9];
        assert_eq!(unprocessed_options("no", &[9, 65001]), several);
    }
}
