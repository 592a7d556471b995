//! Every weight format against an independent reader: the elements that PyPI's `gguf` reads from
//! random blocks (`scripts/make_format_goldens.py`), compared by bits on every instruction set.

use aios_contract::DType;
use aios_kernels::{Isa, ShapeError, dequantize};

/// Blocks of one dtype and the elements they stand for.
struct Case {
    dtype: DType,
    bytes: Vec<u8>,
    elements: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let mut rest: &[u8] = include_bytes!("../testdata/formats.bin");
    let mut take = |n: usize| {
        let (taken, left) = rest.split_at_checked(n)?;
        rest = left;
        Some(taken)
    };
    let mut cases = Vec::new();
    while let Some(header) = take(12) {
        let word = |i: usize| u32::from_le_bytes(header[4 * i..4 * i + 4].try_into().unwrap());
        let dtype = DType::from_gguf(word(0)).expect("a dtype of this engine");
        let (elements, bytes) = (word(1) as usize, word(2) as usize);
        let bytes = take(bytes).expect("the bytes of a case").to_vec();
        let elements = take(4 * elements).expect("the elements of a case");
        let elements = elements.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()));
        cases.push(Case { dtype, bytes, elements: elements.collect() });
    }
    cases
}

fn read(isa: Isa, dtype: DType, bytes: &[u8], elements: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; elements];
    dequantize(isa, dtype, bytes, &mut out).expect("lengths agree");
    out
}

/// The first element whose bits differ, if any does.
fn first_difference(expected: &[f32], found: &[f32]) -> Option<usize> {
    assert_eq!(expected.len(), found.len());
    expected.iter().zip(found).position(|(a, b)| a.to_bits() != b.to_bits())
}

#[test]
fn every_format_reads_as_the_independent_reader_does() {
    for dtype in DType::ALL {
        assert_eq!(cases().iter().filter(|case| case.dtype == dtype).count(), 3, "{dtype}");
    }
    for Case { dtype, bytes, elements } in cases() {
        for isa in Isa::available() {
            let found = read(isa, dtype, &bytes, elements.len());
            let difference = first_difference(&elements, &found);
            assert_eq!(difference, None, "{dtype} on {}", isa.description());
        }
    }
}

#[test]
fn weights_may_start_at_any_address() {
    for Case { dtype, bytes, elements } in cases() {
        for shift in 0..4 {
            let shifted: Vec<u8> = [0; 4][..shift].iter().chain(&bytes).copied().collect();
            let found = read(Isa::detect(), dtype, &shifted[shift..], elements.len());
            assert_eq!(first_difference(&elements, &found), None, "{dtype}");
        }
    }
}

/// A bit that is read nowhere, or a comparison that sees nothing, would fail here. One block may
/// hide a bit behind a scale of zero, but not every block of a case.
#[test]
fn every_bit_of_a_block_matters() {
    for Case { dtype, mut bytes, elements } in cases().into_iter().step_by(3) {
        let mut matters = |bit: usize| {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = read(Isa::detect(), dtype, &bytes, elements.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            let difference = first_difference(&elements, &found);
            let block = bit / (8 * dtype.block_bytes());
            assert!(difference.is_none_or(|at| at / dtype.block_len() == block), "{dtype}");
            difference.is_some()
        };
        let bits = 8 * dtype.block_bytes();
        let blocks = elements.len() / dtype.block_len();
        for bit in 0..bits {
            let seen = (0..blocks).any(|block| matters(block * bits + bit));
            assert!(seen, "{dtype}: bit {bit} of a block has no effect");
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused_and_nothing_is_written() {
    for dtype in DType::ALL {
        for isa in Isa::available() {
            let elements = 2 * dtype.block_len();
            let expected = 2 * dtype.block_bytes();
            let bytes = vec![0; expected + 1];
            let mut out = vec![7.0; elements];
            for found in [0, expected - 1, expected + 1] {
                let error = ShapeError::Bytes { dtype, elements, expected, found };
                assert_eq!(dequantize(isa, dtype, &bytes[..found], &mut out), Err(error));
            }
            if !dtype.is_float() {
                let elements = elements - 1;
                let error = ShapeError::PartialBlock { dtype, elements };
                let out = &mut out[..elements];
                assert_eq!(dequantize(isa, dtype, &bytes[..expected], out), Err(error));
            }
            assert!(out.iter().all(|x| *x == 7.0));
            assert_eq!(dequantize(isa, dtype, &[], &mut []), Ok(()));
        }
    }
}
