/** A unary call as its handler knows it and as its interceptors do, both in one object, however it came. */
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  type DescService,
  type Message,
  type MessageInitShape,
} from "@bufbuild/protobuf";
import type { ContextValues, HandlerContext, Interceptor, UnaryRequest, UnaryResponse } from "@connectrpc/connect";

/** A method's implementation. */
export type UnaryImpl = (message: Message, context: HandlerContext) => Promise<MessageInitShape<DescMessage>>;

/** The implementation behind its interceptors, put together once. They pass the request on as they got it, for it is the context too. */
export function applied(method: DescMethodUnary, impl: UnaryImpl, interceptors: readonly Interceptor[]) {
  const invoke = async (request: UnaryRequest): Promise<UnaryResponse> => {
    if (!(request instanceof UnaryContext)) throw new Error("an interceptor made a request of its own");
    const message = create(method.output, await impl(request.message, request));
    const { responseHeader: header, responseTrailer: trailer } = request;
    return { stream: false, service: method.parent, method, message, header, trailer };
  };
  return interceptors.reduceRight<AnyFn>((next, interceptor) => interceptor(next), invoke as AnyFn) as typeof invoke;
}

type AnyFn = Parameters<Interceptor>[0];

/** What not every handler asks for is made when one does. */
export abstract class UnaryContext implements HandlerContext, UnaryRequest {
  readonly stream = false;
  readonly requestMethod: string;
  readonly protocolName: string;
  readonly method: DescMethodUnary;
  readonly service: DescService;
  readonly values: ContextValues;
  readonly responseHeader: Headers = new Headers();
  declare message: Message;
  #responseTrailer: Headers | undefined;

  constructor(method: DescMethodUnary, values: ContextValues, protocolName: string, requestMethod = "POST") {
    this.method = method;
    this.service = method.parent;
    this.values = values;
    this.protocolName = protocolName;
    this.requestMethod = requestMethod;
  }

  abstract get url(): string;
  abstract get requestHeader(): Headers;
  abstract get signal(): AbortSignal;
  abstract timeoutMs(): number | undefined;

  get contextValues(): ContextValues {
    return this.values;
  }

  get header(): Headers {
    return this.requestHeader;
  }

  get responseTrailer(): Headers {
    return (this.#responseTrailer ??= new Headers());
  }

  /** The trailers, if the handler has asked for any. */
  protected trailersSet(): Headers | undefined {
    return this.#responseTrailer;
  }
}
