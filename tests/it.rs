//! What needs sockets, the recording or the built program, in one binary: each binary links everything once more.

mod it {
    mod allocation;
    mod changes;
    mod check;
    mod connector;
    mod decoding;
    mod evolution;
    mod flattened;
    mod folder;
    mod full;
    mod garbage;
    mod golden;
    mod kill;
    mod landing;
    mod losing;
    mod outages;
    mod printed;
    mod program;
    mod quarantine;
    mod queues;
    mod raw;
    mod rebuilding;
    mod recording;
    mod replay;
    mod running;
    mod shop;
    mod sql;
    mod sqlserver;
}
