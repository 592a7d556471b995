//! Plans of micro models: what they screen is what the whole head says, to the bit.
