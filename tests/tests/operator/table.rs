//! Failures and what becomes of them: every reason of the catalogue is reached.
