//! Repacked weights: when they are made, when they are made anew, and what happens where they
//! cannot be. That they change no result is tested with the digests of the golden cases.

use aios_engine::{Model, RepackError, Repacked, repacked_files};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

fn micro() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models/micro-llama-q4km.gguf")
}

fn load(path: &Path, folder: &Path) -> Result<Repacked, RepackError> {
    Model::load_repacked(path, folder, &mut |_, _| true).expect("a sound model").1
}

#[test]
fn panels_are_made_once_and_anew_when_the_source_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("model.gguf");
    fs::copy(micro(), &source).expect("copied");
    let panels = folder.path().join("panels");
    let first = load(&source, &panels).expect("made");
    assert!(first.made && first.path.starts_with(&panels));
    assert_eq!(fs::metadata(&first.path).expect("there").len(), first.bytes);
    let second = load(&source, &panels).expect("mapped");
    assert_eq!(second, Repacked { made: false, ..first.clone() });
    // Another time of change makes them anew, under the same name.
    let file = fs::File::options().write(true).open(&source).expect("opened");
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).expect("touched");
    let third = load(&source, &panels).expect("made");
    assert_eq!(third, first);
    // So does damage to them.
    let whole = fs::read(&first.path).expect("read");
    fs::write(&first.path, &whole[..whole.len() - 1]).expect("written");
    assert!(load(&source, &panels).expect("made").made);
    assert_eq!(fs::read(&first.path).expect("read"), whole);
    // The note of where the model is, beside it.
    assert_eq!(fs::read_dir(&panels).expect("read").count(), 2);
}

#[test]
fn what_is_kept_can_be_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let panels = folder.path().join("panels");
    assert_eq!(repacked_files(&panels).expect("no folder, no files"), []);
    let made = load(&micro(), &panels).expect("made");
    fs::write(panels.join("0123.panels.part"), "half of one").expect("written");
    fs::write(panels.join("notes.txt"), "of another kind").expect("written");
    let files = repacked_files(&panels).expect("read");
    let [half, whole] = &files[..] else { panic!("{files:?}") };
    assert_eq!((half.bytes, half.source_sha256, &half.source), (11, None, &None));
    assert_eq!((&whole.path, whole.bytes), (&made.path, made.bytes));
    assert_eq!(whole.source_sha256, Some(made.source_sha256));
    assert_eq!(whole.source, Some(fs::canonicalize(micro()).expect("there")));
    // A note that is no path, or is gone, is no source.
    fs::write(made.path.with_extension("source"), vec![b'x'; 5000]).expect("written");
    assert_eq!(repacked_files(&panels).expect("read")[1].source, None);
    // The next use of the model writes it anew.
    load(&micro(), &panels).expect("mapped");
    assert!(repacked_files(&panels).expect("read")[1].source.is_some());
    assert!(repacked_files(&micro()).is_err(), "a file is no folder");
}

#[test]
fn a_model_runs_where_its_panels_cannot_be_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "not a folder").expect("written");
    let error = load(&micro(), &file.join("panels")).expect_err("a file is in the way");
    assert!(matches!(&error, RepackError::Write { .. }), "{error}");
    assert!(error.to_string().contains("panels"), "{error}");
    let panels = folder.path().join("panels");
    let loaded = Model::load_repacked(&micro(), &panels, &mut |done, total| {
        assert!(0 < done && done <= total);
        false
    });
    assert!(matches!(loaded.expect("a sound model").1, Err(RepackError::Stopped)));
    assert_eq!(fs::read_dir(&panels).expect("read").count(), 0);
}
