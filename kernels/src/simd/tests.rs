//! Every method of every token against the scalar reference, with `==`.
