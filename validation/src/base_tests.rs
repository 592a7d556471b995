use super::*;
use crate::divergence::Divergences;
use crate::logits::log_sum_exp;

const VOCAB: usize = 300;

fn windows() -> Windows {
    Windows::of_tokens((0..16).collect(), None, 8).expect("windows")
}

fn header() -> Header {
    Header::new(VOCAB, &windows(), [7; 32])
}

/// Logits with a few likely ids and a long tail, another set for each seed.
fn logits(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..VOCAB).map(|_| 12.0 * next() * next() - 5.0).collect()
}

fn scored(logits: &[f32]) -> Scored<'_> {
    Scored { window: 0, target: 5, logits, lse: log_sum_exp(logits) }
}

fn file(rows: &[Vec<f32>]) -> Vec<u8> {
    let mut writer = BaseWriter::new(Vec::new(), &header()).expect("a header");
    rows.iter().for_each(|row| writer.write(scored(row)).expect("a record"));
    writer.finish().expect("a flush")
}

fn rows() -> Vec<Vec<f32>> {
    (1..=windows().scored() as u64).map(logits).collect()
}

fn open<'a>(file: &'a [u8], ours: &Header) -> Result<BaseReader<&'a [u8]>, BaseError> {
    BaseReader::new(file, file.len() as u64, ours)
}

/// Σ p (ln p − ln q) from the logits themselves.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_lse, q_lse) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - p_lse, f64::from(q) - q_lse);
        libm::exp(p) * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

#[test]
fn codes_are_as_close_as_promised() {
    for step in 0..=32_000 {
        let depth = f64::from(step) / 1000.0;
        let error = (decode(encode(depth)) - depth).abs();
        let bound = (DEPTH_MAX * depth).sqrt() / CODE_MAX + 1e-8;
        assert!(error <= bound, "{depth}: {error} > {bound}");
    }
    assert_eq!((encode(0.0), encode(1e9), decode(u16::MAX)), (0, u16::MAX, DEPTH_MAX));
}

#[test]
fn divergence_from_saved_logits_is_that_from_the_logits() {
    let (rows, file) = (rows(), file(&rows()));
    assert_eq!(Some(file.len() as u64), header().file_bytes());
    let mut reader = open(&file, &header()).expect("a base");
    assert_eq!(*reader.header(), header());
    for row in &rows {
        let other = logits(99);
        let record = reader.next_record().expect("a record");
        assert_eq!(record.top, argmax(row).0);
        assert!((record.loss - scored(row).loss()).abs() < 1e-6);
        assert!(record.divergence(scored(row)).abs() < 1e-4);
        let (found, want) = (record.divergence(scored(&other)), divergence(row, &other));
        assert!(want > 0.1 && (found - want).abs() < 1e-3, "{found} {want}");
    }
    assert!(matches!(reader.next_record(), Err(BaseError::Io(_))));
}

#[test]
fn a_summary_sees_a_planted_difference() {
    let (rows, file) = (rows(), file(&rows()));
    let mut reader = open(&file, &header()).expect("a base");
    let mut divergences = Divergences::default();
    for (i, row) in rows.iter().enumerate() {
        let mut row = row.clone();
        if i == 2 {
            // The least likely id becomes the likeliest.
            let least = (0..VOCAB).min_by(|&a, &b| row[a].total_cmp(&row[b])).expect("an id");
            row[least] += 40.0;
        }
        divergences.add(&reader.next_record().expect("a record"), scored(&row));
    }
    let summary = divergences.summary();
    let n = rows.len() as f64;
    assert!((summary.top1_agreement - (n - 1.0) / n).abs() < 1e-12);
    assert!(summary.max > 10.0 && summary.median.abs() < 1e-4, "{summary:?}");
    assert!((summary.mean * n - summary.max).abs() < 1e-3, "{summary:?}");
    assert!(summary.p99 > summary.median && summary.p99 <= summary.max, "{summary:?}");
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let file = file(&rows());
    let refused = |file: &[u8], ours: &Header| match open(file, ours) {
        Ok(_) => String::from("accepted"),
        Err(error) => error.to_string(),
    };
    let ours = header();
    assert!(refused(&[], &ours).contains("no file of saved logits"));
    assert!(refused(b"GGUF....whatever", &ours).contains("no file of saved logits"));
    assert!(refused(&file[..50], &ours).contains("saved logits: "));
    assert!(refused(&file[..file.len() - 1], &ours).contains("where their header asks for"));
    assert!(refused(&[&file[..], &[0]].concat(), &ours).contains("where their header asks for"));
    let mut newer = file.clone();
    newer[8] = 9;
    assert!(refused(&newer, &ours).contains("version 9"));
    let other = Header { vocab: 301, ..ours };
    assert!(refused(&file, &other).contains("a vocabulary of 300, this run's is 301"));
    let other = Header { tokens_sha256: [0; 32], ..ours };
    assert!(refused(&file, &other).contains("another text"));
    assert!(open(&file, &Header { model_sha256: [0; 32], ..ours }).is_ok());
    // A header that asks for more than can be is refused before anything is allocated.
    let huge = Header { vocab: u32::MAX, window: u32::MAX, windows: u32::MAX, ..ours };
    let mut bytes = Vec::new();
    huge.write(&mut bytes).expect("a header");
    assert!(refused(&bytes, &huge).contains("where their header asks for"));
    let mut damaged = file;
    let nan = HEADER_BYTES as usize + 4;
    damaged[nan..nan + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = open(&damaged, &ours).expect("a base").next_record().expect_err("NaN");
    assert!(matches!(error, BaseError::Damaged(0)), "{error}");
}
