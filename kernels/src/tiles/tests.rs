//! AMX against plain code.

use super::*;
use crate::testing::Noise;

fn fill<T: Pod>(noise: &mut Noise) -> T {
    bytemuck::pod_read_unaligned(&noise.bytes(size_of::<T>()))
}

#[test]
#[cfg(target_arch = "x86_64")]
fn amx_gives_the_sums_of_plain_code() {
    let Some(amx) = Amx::detect() else {
        eprintln!("skipped: this processor or system has no AMX");
        return;
    };
    let mut noise = Noise::new(1);
    for _ in 0..20 {
        let x: [Line; 128] = fill(&mut noise);
        let (w, plane): (Planes, Plane) = (fill(&mut noise), fill(&mut noise));
        let [mut found, mut expected] = [[Sums::zeroed(); 4]; 2];
        Tiles::Amx(amx).ready(Shape::Super).super_block(&x, &w, &mut found);
        Tiles::Plain.ready(Shape::Super).super_block(&x, &w, &mut expected);
        assert_eq!(found, expected);
        let x = x.first_chunk().expect("64 lines");
        let [mut found, mut expected] = [[Sums::zeroed(); 8]; 2];
        Tiles::Amx(amx).ready(Shape::Blocks).blocks(x, &plane, &mut found);
        Tiles::Plain.ready(Shape::Blocks).blocks(x, &plane, &mut expected);
        assert_eq!(found, expected);
    }
}

#[test]
#[should_panic(expected = "left == right")]
fn products_of_another_shape_are_refused() {
    let mut out = [Sums::zeroed(); 4];
    let (x, w) = ([Line::zeroed(); 128], Planes::zeroed());
    Tiles::Plain.ready(Shape::Blocks).super_block(&x, &w, &mut out);
}
