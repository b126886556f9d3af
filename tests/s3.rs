//! What needs an object store: raw and index on S3. A binary of its own, which `cargo test` does not run; `make s3` starts SeaweedFS and runs it.

// The modules are those of tests/it.rs, of which this needs a part.
#[allow(dead_code)]
mod it {
    mod between;
    mod connector;
    mod folder;
    mod running;
    mod s3;
}
