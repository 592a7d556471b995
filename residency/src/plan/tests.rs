//! A plan that was written is read; every damage to one is noticed.

use super::*;
use aios_contract::DType;

const STAMP: [u8; 32] = [7; 32];

fn hardware() -> Hardware {
    let cpu = Some("Some processor".to_owned());
    Hardware { cpu, isa: "avx2".to_owned(), processors: 2, llc_bytes: Some(1 << 25) }
}

fn write(folder: &Path, seed: u8) -> Manifest {
    let mut writer = TableWriter::create(folder, TableKind::HeadSketch, 5000).expect("created");
    for byte in 0..5000_u32 {
        writer.write(&[byte as u8 ^ seed]).expect("written");
    }
    let mut numbers = [0; NUMBERS];
    numbers[3] = 77;
    let table = writer.finish(&numbers).expect("finished");
    let screened =
        Screened { best: 1, positions: 4, whole: 1, refined: 40, rows: 30, fraction: 0.45 };
    let manifest = Manifest {
        schema: SCHEMA,
        source: Source { stamp: hex(&STAMP), sha256: "ab".to_owned(), bytes: 9 },
        synthetic: false,
        head: HeadMatrix { dtype: DType::Q8_0, rows: 10, cols: 64, sha256: "cd".to_owned() },
        hardware: hardware(),
        quality: Quality::Exact,
        llc_bytes: None,
        tables: vec![table],
        ffn: None,
        threshold: None,
        keep: None,
        prefetch: None,
        memory: None,
        bytes_per_token: vec![("head".to_owned(), 680)],
        unscreened: None,
        screen: Some(ScreenReport {
            pays: true,
            positions_most: 2,
            top_40_positions_most: 1,
            head_bytes: 680,
            base_bytes: 300,
            refined_bytes: 200,
            fitted_positions: 99,
            along: 0.75,
            greedy: screened,
            top_40: Screened { best: 40, ..screened },
            times: vec![Times {
                best: 1,
                positions: 1,
                whole_ms: 2.0,
                screened_ms: 1.5,
                samples: 9,
            }],
        }),
    };
    write_manifest(folder, &manifest).expect("written");
    manifest
}

#[test]
fn what_was_written_is_read_and_nothing_else_is_left() {
    let outer = tempfile::tempdir().expect("a folder");
    let folder = outer.path().join("deeper");
    assert!(matches!(read_manifest(&folder), Err(PlanError::Missing { .. })));
    for seed in [1, 2, 2] {
        let manifest = write(&folder, seed);
        let plan = Plan::open(&folder, &STAMP, &hardware()).expect("sound");
        assert_eq!(plan.manifest, manifest);
        assert_eq!((plan.tables[0].numbers()[3], plan.tables[0].body().len()), (77, 5000));
        assert!(plan.tables[0].body().iter().zip(0..).all(|(b, i): (_, u32)| *b == i as u8 ^ seed));
        assert_eq!(fs::read_dir(&folder).expect("read").count(), 2);
    }
}

#[test]
fn another_model_and_another_machine_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), 3);
    let other = Plan::open(folder.path(), &[8; 32], &hardware()).expect_err("another model");
    assert!(other.to_string().contains("model's files"), "{other}");
    let machine = Hardware { processors: 3, ..hardware() };
    let other = Plan::open(folder.path(), &STAMP, &machine).expect_err("another machine");
    assert!(other.to_string().contains("3 processors"), "{other}");
}

#[test]
fn every_damage_to_a_table_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = write(folder.path(), 4);
    let path = folder.path().join(&manifest.tables[0].file);
    let sound = fs::read(&path).expect("read");
    let refused = || Plan::open(folder.path(), &STAMP, &hardware()).is_err();
    assert!(!refused());
    for at in (0..200).chain((200..sound.len()).step_by(61)).chain([sound.len() - 1]) {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).expect("written");
        assert!(refused(), "byte {at}");
    }
    for len in [0, 1, 23, 151, 4095, 4096, sound.len() - 1] {
        fs::write(&path, &sound[..len]).expect("written");
        assert!(refused(), "length {len}");
    }
    fs::write(&path, [&sound[..], &[0]].concat()).expect("written");
    assert!(refused());
    fs::remove_file(&path).expect("removed");
    assert!(refused());
    fs::create_dir(&path).expect("created");
    assert!(refused());
}

/// What is said of a plan whose manifest is `text`.
fn say(folder: &Path, text: &[u8]) -> String {
    fs::write(folder.join(MANIFEST), text).expect("written");
    match Plan::open(folder, &STAMP, &hardware()) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_manifest_that_is_not_one_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), 5);
    let path = folder.path().join(MANIFEST);
    let sound = fs::read_to_string(&path).expect("read");
    let say = |text: &[u8]| say(folder.path(), text);
    let changed = |from: &str, to: &str| {
        assert!(sound.contains(from), "{from}");
        sound.replace(from, to).into_bytes()
    };
    let ffn = |up: i32| {
        format!(
            "\"ffn\": {{\"pays\": true, \"down_of_ten\": 4, \"up_of_ten\": {up}, \"tokens\": 1, \
             \"zero_fraction\": 0.5, \"whole_bytes\": 2, \"read_bytes\": 1, \"whole_ms\": 1.0, \
             \"skipped_ms\": 0.5}},"
        )
    };
    let early = |ahead: &str| {
        format!(
            "\"prefetch\": {{\"ahead\": {ahead}, \"usual\": 1, \"fastest\": 2, \"tokens\": 1, \
             \"usual_ms\": 1.0, \"fastest_ms\": 0.5}},"
        )
    };
    let before_screen = |field: &str| changed("\"screen\": {", &format!("{field} \"screen\": {{"));
    for (text, wanted) in [
        (b"".to_vec(), "EOF"),
        (before_screen(&early("65537")), "so far ahead"),
        (before_screen(&early("1.5")), "1.5"),
        (before_screen("\"keep\": 7,"), "KeepReport"),
        (before_screen("\"memory\": {\"ram_bytes\": -1},"), "-1"),
        (vec![0xff; 10], "line 1"),
        (b"[]".to_vec(), "invalid"),
        (b"{}".to_vec(), "schema"),
        (vec![b' '; (1 << 20) + 1], "more than"),
        (vec![b'['; 100_000], "recursion"),
        (changed("\"schema\": 3", "\"schema\": 2"), "schema 2 is not 3"),
        (changed("\"schema\": 3", "\"schema\": 3, \"more\": 0"), "more"),
        (changed("\"exact\"", "\"lossless\""), "lossless"),
        (changed("\"rows\": 10", "\"rows\": -10"), "-10"),
        (changed("head_sketch\"", "foot_sketch\""), "kind"),
        (before_screen(&ffn(11)), "ten tenths"),
        (before_screen(&ffn(-1)), "-1"),
        (changed("\"positions_most\": 2", "\"positions_most\": 0"), "so many positions"),
        (changed("\"positions_most\": 2", "\"positions_most\": 9"), "so many positions"),
        (changed("40_positions_most\": 1", "40_positions_most\": 9"), "so many positions"),
        (changed("\"whole_ms\": 2.0", "\"whole_ms\": -2.0"), "below 0"),
        (changed("\"whole_ms\": 2.0", "\"whole_ms\": 2e999"), "out of range"),
        (changed("\"along\": 0.75", "\"along\": -0.75"), "below 0"),
        (changed("\"fraction\": 0.45", "\"fraction\": -1e-9"), "below 0"),
        (before_screen(&ffn(4).replace("0.5,", "-0.5,")), "below 0"),
        (changed("\"file\": \"", "\"file\": \"../"), "name"),
        (changed("\"file\": \"", "\"file\": \"/"), "name"),
        (changed("\"bytes\": 9096", "\"bytes\": 18446744073709551615"), "length"),
    ] {
        let said = say(&text);
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    for len in (0..sound.len() - 2).step_by(17) {
        assert_ne!(say(&sound.as_bytes()[..len]), "accepted");
    }
    assert_eq!(say(sound.as_bytes()), "accepted");
}

/// Thresholds change results: a plan that says it is exact, or whose figures nobody can have
/// measured, has none.
#[test]
fn thresholds_that_nobody_can_have_measured_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut manifest = write(folder.path(), 6);
    let point = ThresholdPoint {
        target: 0.1,
        kl: 0.004,
        kl_standard_error: 0.001,
        perplexity_ratio: 1.004,
        perplexity_ratio_standard_error: 0.001,
    };
    let mut said = |quality, chosen, point| {
        manifest.quality = quality;
        let (tried, positions, base_perplexity) = (vec![point], 99, 7.0);
        manifest.threshold = Some(ThresholdReport { tried, chosen, positions, base_perplexity });
        say(folder.path(), &serde_json::to_vec(&manifest).expect("JSON"))
    };
    let (balanced, first) = (Quality::Balanced, Some(0));
    assert_eq!(said(balanced, first, point), "accepted");
    assert_eq!(said(balanced, None, ThresholdPoint { kl: 9.0, ..point }), "accepted");
    // A divergence of nothing may be rounded to a little less.
    assert_eq!(said(balanced, first, ThresholdPoint { kl: -1e-12, ..point }), "accepted");
    for (quality, chosen, point, wanted) in [
        (Quality::Exact, None, point, "exact plan"),
        (Quality::Exact, first, ThresholdPoint { kl: 0.0, ..point }, "exact plan"),
        (Quality::Conservative, first, point, "more than its quality allows"),
        (balanced, Some(1), point, "was not tried"),
        (balanced, first, ThresholdPoint { kl: -0.004, ..point }, "below 0"),
        (balanced, None, ThresholdPoint { kl: -0.004, ..point }, "below 0"),
        (balanced, first, ThresholdPoint { kl: f64::NAN, ..point }, "null"),
        (balanced, first, ThresholdPoint { perplexity_ratio: 0.0, ..point }, "below 0"),
        (balanced, first, ThresholdPoint { perplexity_ratio: -1.0, ..point }, "below 0"),
        (balanced, first, ThresholdPoint { target: -0.1, ..point }, "below 0"),
        (balanced, first, ThresholdPoint { kl_standard_error: -1.0, ..point }, "below 0"),
    ] {
        let said = said(quality, chosen, point);
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    manifest.threshold = None;
    manifest.quality = Quality::Exact;
    manifest.tables[0].kind = "ffn_thresholds".to_owned();
    let said = say(folder.path(), &serde_json::to_vec(&manifest).expect("JSON"));
    assert!(said.contains("exact plan"), "{said}");
}

/// A manifest that came from elsewhere has no say about which files go.
#[test]
fn only_tables_make_way_for_a_new_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut manifest = write(folder.path(), 7);
    let old = folder.path().join(&manifest.tables[0].file);
    let sound = manifest.tables[0].clone();
    for (file, sha256) in [
        ("notes.txt", &*sound.sha256),
        ("head_sketch-0123456789abcdef.table", &*sound.sha256),
        ("head_sketch-notes.table", "notes"),
        ("head_sketch-.table", ""),
    ] {
        fs::write(folder.path().join(file), "mine").expect("written");
        let (file, sha256) = (file.to_owned(), sha256.to_owned());
        manifest.tables.push(TableEntry { file, sha256, ..sound.clone() });
    }
    let hostile = serde_json::to_vec(&manifest).expect("JSON");
    fs::write(folder.path().join(MANIFEST), hostile).expect("written");
    write(folder.path(), 8);
    assert!(!old.exists(), "the table of the plan before");
    for entry in &manifest.tables[1..] {
        assert!(folder.path().join(&entry.file).exists(), "{}", entry.file);
    }
}

#[test]
fn a_writer_that_gives_up_leaves_nothing_and_a_full_disk_shows_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let writer = TableWriter::create(folder.path(), TableKind::HeadSketch, 10).expect("created");
    let second = TableWriter::create(folder.path(), TableKind::HeadSketch, 10);
    assert!(matches!(second, Err(PlanError::Write { .. })));
    drop(writer);
    let full = TableWriter::create(folder.path(), TableKind::HeadSketch, 1 << 60);
    assert!(matches!(full, Err(PlanError::Write { .. })));
    let path = folder.path().join(MANIFEST);
    let said = |kind: io::ErrorKind| {
        PlanError::Write { path: path.clone(), source: kind.into() }.to_string()
    };
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
        assert!(said(kind).contains("make room") && said(kind).contains("--out"), "{kind:?}");
    }
    assert!(said(io::ErrorKind::PermissionDenied).contains("--out"));
    assert!(!said(io::ErrorKind::Interrupted).contains("--out"));
    assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 0);
    let nowhere = TableWriter::create(Path::new("/proc/none"), TableKind::HeadSketch, 1);
    assert!(matches!(nowhere, Err(PlanError::Write { .. })));
}
