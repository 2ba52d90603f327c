//! Tests with bytes that SQLite has not written. Tests with pages from SQLite are in
//! `wipe/tests.rs`.

use proptest::prelude::*;

use super::*;

const SIZE: usize = 512;

fn layout(reserved: usize) -> Layout {
    Layout { page_size: SIZE, usable: SIZE - reserved, first_trunk: 0, free_pages: 0, has_pointer_map: false }
}

/// Returns a leaf page of a table with two rows, a free block of 9 bytes, two fragments of 2 bytes
/// each, and 0xee in all unused bytes.
fn leaf() -> Vec<u8> {
    let mut page = vec![0xee; SIZE];
    page[..12].copy_from_slice(&[13, 1, 0xe6, 0, 2, 1, 0xe0, 4, 1, 0xf1, 1, 0xe0]);
    // The first row: payload of 4 bytes, rowid 1.
    page[0x1e0..0x1e6].copy_from_slice(&[4, 1, 2, 1, b'a', b'b']);
    page[0x1e6..0x1ea].copy_from_slice(&[0, 0, 0, 9]);
    page[0x1f1..0x1fe].copy_from_slice(&[11, 2, 2, 21, b'a', b'b', b'c', b'd', b'e', b'f', b'g', b'h', b'i']);
    page
}

#[test]
fn only_the_gap_the_free_blocks_and_the_fragments_become_zero() {
    let (mut page, before, mut chains) = (leaf(), leaf(), Vec::new());
    assert_eq!(wipe_tree(&mut page, 2, &layout(0), &mut chains), Some(true));
    assert!(chains.is_empty());
    let unused = [12..0x1e0, 0x1ea..0x1ef, 0x1ef..0x1f1, 0x1fe..0x200];
    for (at, byte) in page.iter().enumerate() {
        let is_unused = unused.iter().any(|range| range.contains(&at));
        assert_eq!(*byte, if is_unused { 0 } else { before[at] }, "at {at:#x}");
    }
    assert_eq!(wipe_tree(&mut page, 2, &layout(0), &mut chains), Some(false), "once more");
}

#[test]
fn a_page_that_contradicts_itself_is_damaged() {
    let damaged = |at: usize, byte: u8| {
        let mut page = leaf();
        page[at] = byte;
        let before = page.clone();
        assert_eq!(wipe_tree(&mut page, 2, &layout(0), &mut Vec::new()), None, "{byte} at {at:#x}");
        assert_eq!(page, before);
    };
    damaged(0, 7);
    damaged(2, 0xe5); // A free block in a cell.
    damaged(4, 1); // A cell less, whose bytes would count as a fragment.
    damaged(4, 3); // A cell at the place 0xeeee.
    damaged(6, 0xe1); // A cell in the gap.
    damaged(7, 3); // Another sum of the fragments.
    damaged(9, 0xe0); // Two cells at one place.
    damaged(0x1e0, 9); // A cell in a free block.
    damaged(0x1e7, 0xe6); // A free block that follows itself.
    damaged(0x1e9, 3); // A free block without room for its head.
    damaged(0x1e9, 0xff); // A free block in a cell.
}

proptest! {
    #[test]
    fn any_bytes_are_read_and_what_is_left_of_them_is_the_same(
        mut page in proptest::collection::vec(any::<u8>(), SIZE),
        head in proptest::option::of((0_usize..4, 0_u8..6, 300_u16..520, 0_u8..9)),
        number in 1_u32..3,
        reserved in 0_usize..40,
    ) {
        let layout = layout(reserved);
        let header = header_of(number);
        if let Some((kind, cells, content, fragments)) = head {
            page[header] = [2, 5, 10, 13][kind];
            page[header + 1..header + 5].copy_from_slice(&[0, 0, 0, cells]);
            page[header + 5..header + 7].copy_from_slice(&content.to_be_bytes());
            page[header + 7] = fragments;
        }
        let before = page.clone();
        let mut chains = Vec::new();
        match wipe_tree(&mut page, number, &layout, &mut chains) {
            None => prop_assert_eq!(&page, &before),
            Some(_) => {
                prop_assert_eq!(&page[..header + 8], &before[..header + 8]);
                prop_assert_eq!(&page[layout.usable..], &before[layout.usable..]);
                prop_assert!(page.iter().zip(&before).all(|(now, then)| *now == 0 || now == then));
                prop_assert_eq!(wipe_tree(&mut page, number, &layout, &mut chains), Some(false));
            }
        }
        let mut page = before.clone();
        if let Some(dirty) = wipe_trunk(&mut page, &layout) {
            prop_assert_eq!(dirty, page != before);
            prop_assert_eq!(&page[..8], &before[..8]);
            prop_assert!(leaves(&page, &layout).unwrap().eq(leaves(&before, &layout).unwrap()));
        }
        Layout::of(&before);
        for cut in 0..before.len() {
            let _ = wipe_trunk(&mut before[..cut].to_vec(), &layout);
            let _ = wipe_tree(&mut before[..cut].to_vec(), number, &layout, &mut chains);
        }
    }
}
