import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import com.google.rpc.ErrorInfo;
import com.google.rpc.Status;
import dev.moltwire.memory.v1.GetEntryRequest;
import dev.moltwire.memory.v1.MemoryServiceGrpc;
import dev.moltwire.memory.v1.SetEntryRequest;
import dev.moltwire.memory.v1.Write;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.net.URI;
import java.util.concurrent.TimeUnit;

/** Writes an entry of its agent's memory and reads it, and prints the reason of an error: MOLTWIRE_URL, and MOLTWIRE_API_KEY of an agent. */
public final class Example {
  public static void main(String[] arguments) throws Exception {
    URI url = URI.create(System.getenv("MOLTWIRE_URL"));
    ManagedChannel channel = ManagedChannelBuilder.forAddress(url.getHost(), url.getPort()).usePlaintext().build();
    try {
      Metadata key = new Metadata();
      Metadata.Key<String> authorization = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
      key.put(authorization, "Bearer " + System.getenv("MOLTWIRE_API_KEY"));
      MemoryServiceGrpc.MemoryServiceBlockingStub memory =
          MemoryServiceGrpc.newBlockingStub(channel).withInterceptors(MetadataUtils.newAttachHeadersInterceptor(key));

      Struct greeting = Struct.newBuilder().putFields("hello", Value.newBuilder().setStringValue("world").build()).build();
      dev.moltwire.memory.v1.Value value =
          dev.moltwire.memory.v1.Value.newBuilder().setJson(Value.newBuilder().setStructValue(greeting)).build();
      Write write = Write.newBuilder().setKey("greeting").setValue(value).build();
      memory.setEntry(SetEntryRequest.newBuilder().setWrite(write).build());
      Struct read =
          memory.getEntry(GetEntryRequest.newBuilder().setKey("greeting").build()).getEntry().getValue().getJson().getStructValue();
      System.out.println(read.getFieldsOrThrow("hello").getStringValue());
      try {
        memory.getEntry(GetEntryRequest.newBuilder().setKey("none").build());
      } catch (StatusRuntimeException error) {
        Status status = StatusProto.fromThrowable(error);
        System.out.println(status.getDetails(0).unpack(ErrorInfo.class).getReason());
      }
    } finally {
      channel.shutdown().awaitTermination(10, TimeUnit.SECONDS);
    }
  }
}
