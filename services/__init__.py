"""The Ray Serve application: Api, Decoder, Encoder, Generator."""
