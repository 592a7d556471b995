//! Encoders against golden vectors of an independent computation, and against hostile files.
