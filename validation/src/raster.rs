//! Pictures as PNG: a surface for plotters whose letters are a bitmap font, so that a picture looks
//! the same on machines with other fonts, or with none.

use std::convert::Infallible;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendTextStyle, DrawingBackend, DrawingErrorKind,
};

const HEIGHT: RasterHeight = RasterHeight::Size16;
const WEIGHT: FontWeight = FontWeight::Regular;
/// What stands for a character that the font lacks.
const UNKNOWN: char = '?';

/// RGB pixels, from the top left, row by row.
pub(crate) struct Surface<'a> {
    size: (u32, u32),
    pixels: &'a mut [u8],
}

impl<'a> Surface<'a> {
    /// A surface over three bytes a pixel.
    ///
    /// # Panics
    /// If their number is another.
    pub(crate) fn new(pixels: &'a mut [u8], size: (u32, u32)) -> Self {
        assert_eq!(pixels.len(), size.0 as usize * size.1 as usize * 3, "three bytes a pixel");
        Self { size, pixels }
    }

    fn blend(&mut self, (x, y): BackendCoord, rgb: (u8, u8, u8), alpha: f64) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        if x >= self.size.0 || y >= self.size.1 {
            return;
        }
        let at = (y as usize * self.size.0 as usize + x as usize) * 3;
        for (old, new) in self.pixels[at..at + 3].iter_mut().zip([rgb.0, rgb.1, rgb.2]) {
            let mixed = f64::from(*old).mul_add(1.0 - alpha, f64::from(new) * alpha);
            *old = mixed.round().clamp(0.0, 255.0) as u8;
        }
    }
}

/// Width and height of a text.
fn text_size(text: &str) -> (i32, i32) {
    let width = get_raster_width(WEIGHT, HEIGHT) * text.chars().count();
    (i32::try_from(width).unwrap_or(i32::MAX), HEIGHT as i32)
}

impl DrawingBackend for Surface<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn draw_pixel(
        &mut self,
        point: BackendCoord,
        color: BackendColor,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        self.blend(point, color.rgb, color.alpha);
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let (width, height) = text_size(text);
        Ok((width.unsigned_abs(), height.unsigned_abs()))
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (left, top): BackendCoord,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let (color, (width, height)) = (style.color(), text_size(text));
        let dx = match style.anchor().h_pos {
            HPos::Left => 0,
            HPos::Right => -width,
            HPos::Center => -width / 2,
        };
        let dy = match style.anchor().v_pos {
            VPos::Top => 0,
            VPos::Center => -height / 2,
            VPos::Bottom => -height,
        };
        let turned = style.transform();
        let mut from = dx;
        for letter in text.chars() {
            let glyph = get_raster(plain(letter), WEIGHT, HEIGHT)
                .or_else(|| get_raster(UNKNOWN, WEIGHT, HEIGHT));
            let Some(glyph) = glyph else { continue };
            for (y, row) in (dy..).zip(glyph.rows()) {
                for (x, ink) in (from..).zip(row).filter(|(_, ink)| **ink > 0) {
                    let (x, y) = turned.transform(x, y);
                    let alpha = color.alpha * f64::from(*ink) / 255.0;
                    self.blend((left + x, top + y), color.rgb, alpha);
                }
            }
            from += text_size(" ").0;
        }
        Ok(())
    }
}

/// The nearest character of ASCII.
const fn plain(letter: char) -> char {
    match letter {
        '·' | '–' | '−' => '-',
        other => other,
    }
}

/// RGB pixels as a PNG file.
///
/// # Errors
/// Those of the encoder.
pub(crate) fn png(pixels: &[u8], size: (u32, u32)) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}
