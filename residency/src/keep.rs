//! Which weights stay in the last-level cache from pass to pass (SPEC D21): a pure function of
//! sizes and room.

/// For matrices of so many bytes, all read equally often, which of them to keep in `room` bytes:
/// the largest first that still fit.
pub fn keep(bytes: &[usize], room: u64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..bytes.len()).collect();
    // Matrices of one size are kept in the order of a pass.
    order.sort_by_key(|&number| std::cmp::Reverse(bytes[number]));
    let mut kept = vec![false; bytes.len()];
    let mut left = room;
    for number in order {
        let size = bytes[number] as u64;
        if size <= left {
            left -= size;
            kept[number] = true;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_that_fit_are_kept_in_order() {
        assert_eq!(keep(&[3, 8, 3, 5], 11), [true, true, false, false]);
        assert_eq!(keep(&[3, 8, 3, 5], 7), [false, false, false, true]);
        assert_eq!(keep(&[3, 8], 2), [false, false]);
        assert_eq!(keep(&[3, 8], u64::MAX), [true, true]);
        assert!(keep(&[], 9).is_empty());
    }

    proptest! {
        #[test]
        fn what_is_kept_fits_and_nothing_left_out_would(
            bytes in prop::collection::vec(0_usize..1000, 0..40),
            room in 0_u64..20_000,
        ) {
            let kept = keep(&bytes, room);
            let of = bytes.iter().zip(&kept).filter(|(_, kept)| **kept);
            let all: usize = of.map(|(bytes, _)| bytes).sum();
            prop_assert!(all as u64 <= room);
            let left = room - all as u64;
            for (size, kept) in bytes.iter().zip(&kept) {
                prop_assert!(*kept || *size as u64 > left);
            }
        }
    }
}
