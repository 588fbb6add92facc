/**
 * Stands in the bundle for the rules of protovalidate, by which the protos state the limits of their fields: checking them is the server's, and their descriptors
 * would be a tenth of what a browser loads first. It is a file of their name, with nothing in it.
 */
import { fileDesc } from "@bufbuild/protobuf/codegenv2";

export const file_buf_validate_validate = fileDesc("ChtidWYvdmFsaWRhdGUvdmFsaWRhdGUucHJvdG8SDGJ1Zi52YWxpZGF0ZQ");
