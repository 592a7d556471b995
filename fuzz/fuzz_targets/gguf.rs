//! Feeds arbitrary bytes to the GGUF reader. Whatever it accepts must keep its promises, and the
//! writer must be able to write it again.

#![no_main]

use aios_engine::gguf::{Gguf, TensorSpec, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let parsed = match Gguf::parse(file) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(error.to_string().chars().all(|c| !c.is_control()));
            return;
        }
    };
    // An alignment may be up to 2 GiB, and the writer would pad with as many zeros.
    if parsed.alignment > 4096 {
        return;
    }
    let specs: Vec<_> = parsed.tensors.iter().map(TensorSpec::from).collect();
    let mut writer = Writer::new(Vec::new(), &parsed.metadata, &specs).expect("it was read");
    for tensor in &parsed.tensors {
        let data = tensor.data(file).expect("the range lies in the file");
        writer.tensor(&tensor.name, data).expect("a vector takes everything");
    }
    let again = writer.finish().expect("all tensors are written");
    let again = Gguf::parse(&again).expect("what is written is sound");
    assert_eq!(format!("{:?}", again.metadata), format!("{:?}", parsed.metadata));
    assert_eq!(again.tensors.len(), parsed.tensors.len());
});
